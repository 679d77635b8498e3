"""What an archive costs at scale, and when it pays: a model of the measured figures."""
