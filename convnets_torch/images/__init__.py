"""Pictures: found, decoded, labelled and preprocessed."""
