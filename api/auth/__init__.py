"""Who may do what: keys, their rates, and what was done with them."""
