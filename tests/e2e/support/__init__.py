"""What the end-to-end tests stand on: a real server, the official client's processes, and checks of what is left."""
