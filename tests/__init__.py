"""The tests: promises about `mirror`, and the fake upstream they are shown with."""
