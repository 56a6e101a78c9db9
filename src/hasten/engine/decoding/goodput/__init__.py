"""What SmartSpec knows and weighs: how good guesses turn out, what steps take, and which lengths give most tokens a second."""
