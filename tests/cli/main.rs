//! Tests that run the program as a user does.

mod bytes;
