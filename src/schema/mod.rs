//! Wire records: pure decoding of keys and values; each error names key, field and reason.
