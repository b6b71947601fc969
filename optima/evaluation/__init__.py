"""What tables and curves of an evaluation are computed from; pure."""
