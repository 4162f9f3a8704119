"""One lock for what must not be under way in another thread while the process is forked: imports of what compiling
needs, and LLVM. The child would wait for them for ever."""

from __future__ import annotations

import os
import threading

undivided = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=undivided.acquire, after_in_parent=undivided.release, after_in_child=undivided.release)
