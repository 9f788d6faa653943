"""What every training run is made of, whatever it trains: feed, loop, processes, resume points."""
