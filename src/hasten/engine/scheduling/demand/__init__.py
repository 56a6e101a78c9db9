"""Demand graphs: what the runs of an application have asked for, and what one under way will still ask for."""
