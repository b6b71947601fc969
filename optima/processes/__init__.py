"""Other Python environments, the processes that run in them, and the devices they run on."""
