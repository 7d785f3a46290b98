"""Settings of episodes and of the engines that they ask."""
