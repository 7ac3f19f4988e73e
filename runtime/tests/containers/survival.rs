pub const TESTS: &[(&str, fn())] = &[];
