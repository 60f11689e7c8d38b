"""Look at what there is: model files and runs described and compared."""
