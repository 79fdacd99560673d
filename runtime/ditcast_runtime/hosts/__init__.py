"""Groups whose ranks others start, on one host or several: how those ranks come to the service."""
