"""What Evoke puts between the official container runtime and the platform.

The official runtime stays in charge of what happens; this package only makes the way to the platform shorter. It is
run in place of the official entrypoint, prepares what is asked for and safe, and then runs that entrypoint.
"""
