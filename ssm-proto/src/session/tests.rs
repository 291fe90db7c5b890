//! What a session promises beyond its parts.
