"""How right answers are that come from what is stored, against ground truth and at equal bytes."""
