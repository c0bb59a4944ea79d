"""For development only: servers, processes and pytest fixtures that the tests and the devstack share."""
