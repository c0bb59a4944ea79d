"""For development only: local servers, processes and pytest fixtures that the tests and the devstack share."""
