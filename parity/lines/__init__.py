"""Which line of a port is wrong: its values beside those of the reference, as it is and with a defect."""
