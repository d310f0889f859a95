"""The checks of ``doctor.py``: this machine, the settings, a module in the real server, a scanner's app container."""
