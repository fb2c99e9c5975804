"""Image classifiers that learn by a printed recipe, under any rule."""
