"""Full-ranking evaluation and its report."""
