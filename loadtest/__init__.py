"""Clients that measure: benchmarks of a running application and the application on scripted engines to run them on."""
