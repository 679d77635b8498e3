"""Questions over everything: answers computed by many workers, one result written once."""
