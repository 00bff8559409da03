"""Generated gRPC stubs (make proto); not linted."""
