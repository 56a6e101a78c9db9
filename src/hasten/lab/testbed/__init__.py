"""Small models trained from scratch, so that every experiment has a real checkpoint to run on."""
