"""Prepares the lean ways, then becomes the official container entrypoint."""


def _become_the_entrypoint() -> None:
    import os
    import runpy

    if "EVOKE_TEMPLATE" in os.environ:
        from evoke_runtime.template import serve

        # Returns in what was forked, which goes on as any other container's program does.
        serve()

    from evoke_runtime.lean import prepare

    prepare()
    # What `python -m` itself calls: the entrypoint is `__main__`, with its own name, path and spec.
    runpy._run_module_as_main("modal._container_entrypoint")


_become_the_entrypoint()
