"""train.csv, localizers and vessel masks -> labels, lesions and vessel labels in patient space."""
