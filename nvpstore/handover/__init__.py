"""What is stored, in the forms that other tools take: training loops, clusters, viewers of labels, lakes."""
