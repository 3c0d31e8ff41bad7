//! Whose token a request shows: the server's own, which the data folder keeps, or one of a person or program, which
//! control knows.

use crate::token::Token;
use evoke_control::Control;
use evoke_core::Principal;
use evoke_gateway::{Authenticator, WorkspaceToken};
use std::sync::Arc;

pub(super) struct Tokens {
    own: WorkspaceToken,
    control: Arc<Control>,
}

impl Tokens {
    pub(super) fn new(own: Token, control: Arc<Control>) -> Self {
        Self { own: WorkspaceToken::new(own.token_id, own.token_secret), control }
    }
}

impl Authenticator for Tokens {
    fn authenticate(&self, token_id: &str, token_secret: &str) -> Option<Principal> {
        self.own.authenticate(token_id, token_secret).or_else(|| {
            let known = self.control.takes_token(token_id, token_secret);
            known.then(|| Principal::Client { token_id: token_id.to_owned(), view: None })
        })
    }
}
