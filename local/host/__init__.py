"""A small Azure Functions host: drives the function app of a directory as the real one would.

From Python 3.13 on the app runs in Microsoft's own worker library, `azure-functions-runtime`; before that, where the
library does not exist, its functions are called directly. The app has a process of its own (the library's registry is
global: one app a process), which may be killed at any moment.

    with Host(app_dir, settings) as host:
        host.functions()                      # {"orders": Function(...), ...}
        host.invoke_timer("orders").ok        # True, or .error says why not

`python -m local.host` adds what calls the functions: timers by cron, HTTP routes on a port, storage queues.
"""

from local.host.app import AppFault, Function
from local.host.client import Host, HttpResult, Invocation, Log, Runtime

__all__ = ["AppFault", "Function", "Host", "HttpResult", "Invocation", "Log", "Runtime"]
