"""The task on captions: say which objects a drawn picture shows, and where."""
