"""What is asked of models and runs beside training: inference, comparisons, dry runs, status."""
