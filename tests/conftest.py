"""What all tests share."""

import os
import signal

# A shell that runs the tests in the background makes them, and the processes that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Waiting threads of PyTorch's and scikit-learn's pools sleep: spinning, they keep the cores from Julia's threads, from
# each other and from whatever else runs, and a K-means of milliseconds may take a second. Read as libraries are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
