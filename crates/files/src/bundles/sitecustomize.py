# Put on the path of containers by Evoke. Python imports it once at start-up.
#
# The packages that the client needs lie in a folder of their own. It goes to the end of the path, so that
# whatever the image or the user installed is found first.
import sys

_OWN_PACKAGES = "/__modal/deps"

if _OWN_PACKAGES not in sys.path:
    sys.path.append(_OWN_PACKAGES)


def _hand_on():
    # Only one module of this name is imported at start-up. If the image brought another one further down
    # the path, it runs now, under the name that it expects.
    import os
    from importlib.machinery import PathFinder

    own_folder = os.path.dirname(os.path.abspath(__file__))
    elsewhere = [entry for entry in sys.path if os.path.abspath(entry or ".") != own_folder]
    found = PathFinder.find_spec(__name__, elsewhere)
    if found is None or found.loader is None:
        return
    from importlib.util import module_from_spec

    module = module_from_spec(found)
    sys.modules[__name__] = module
    found.loader.exec_module(module)


_hand_on()
