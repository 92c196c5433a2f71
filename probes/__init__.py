"""Programs that ask questions of models, stores and dictionaries; see each for its paper."""
