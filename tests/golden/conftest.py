"""What pytest leaves alone here: programs that run where another library is installed."""

collect_ignore_glob = ["*/make.py", "*/make_*.py"]
