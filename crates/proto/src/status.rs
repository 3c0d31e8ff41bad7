//! A failed call as gRPC carries it, and the one mapping of our error codes to gRPC's.

use bytes::Bytes;
use evoke_core::{Error, ErrorCode};
use prost::Message;
use std::fmt;

use crate::api;

/// gRPC's status codes, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // The names are the specification's.
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl From<ErrorCode> for Code {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidArgument => Code::InvalidArgument,
            ErrorCode::NotFound => Code::NotFound,
            ErrorCode::AlreadyExists => Code::AlreadyExists,
            ErrorCode::PermissionDenied => Code::PermissionDenied,
            ErrorCode::Unauthenticated => Code::Unauthenticated,
            ErrorCode::ResourceExhausted => Code::ResourceExhausted,
            ErrorCode::FailedPrecondition => Code::FailedPrecondition,
            ErrorCode::Unimplemented => Code::Unimplemented,
            ErrorCode::Unavailable => Code::Unavailable,
            ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
            ErrorCode::DataLoss => Code::DataLoss,
            ErrorCode::Internal => Code::Internal,
        }
    }
}

/// Why a call failed. The client shows the message to its user as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The kind of failure.
    pub code: Code,
    /// What failed and what to do about it.
    pub message: String,
    /// The value of `grpc-status-details-bin`: a serialized `google.rpc.Status`.
    pub details: Option<Bytes>,
}

impl Status {
    /// A status without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: None }
    }
    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
    /// What the request names does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }
    /// A defect of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
    /// Temporarily not possible; the client asks again by itself.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }
    /// Not served by this server.
    pub fn unimplemented(name: &str) -> Self {
        Self::new(Code::Unimplemented, format!("{name} is not served by this Evoke version"))
    }

    /// The same status with one detail message, named by its package and name.
    #[must_use]
    pub fn with_detail(mut self, type_name: &str, detail: &impl Message) -> Self {
        let status = api::RpcStatus {
            code: self.code as i32,
            message: self.message.clone(),
            details: vec![prost_types::Any {
                type_url: format!("type.googleapis.com/{type_name}"),
                value: detail.encode_to_vec(),
            }],
        };
        self.details = Some(status.encode_to_vec().into());
        self
    }

    /// The same status, telling the client to try again after `seconds`, as often as it takes. Whatever the
    /// code, the client then neither fails nor counts the attempt.
    #[must_use]
    pub fn retry_after(self, seconds: f32) -> Self {
        self.with_detail("modal.client.RPCRetryPolicy", &api::RpcRetryPolicy { retry_after_secs: seconds })
    }

    /// The looked-up name is a class's: the client then advises to look up the class.
    #[must_use]
    pub fn class_name_used(self) -> Self {
        let reason = api::function_lookup_error::Reason::ClassNameUsed as i32;
        self.with_detail("modal.client.FunctionLookupError", &api::FunctionLookupError { reason })
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code.into(), error.to_string())
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let code = match status.code {
            Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
            Code::NotFound => ErrorCode::NotFound,
            Code::AlreadyExists => ErrorCode::AlreadyExists,
            Code::PermissionDenied => ErrorCode::PermissionDenied,
            Code::Unauthenticated => ErrorCode::Unauthenticated,
            Code::ResourceExhausted => ErrorCode::ResourceExhausted,
            Code::FailedPrecondition | Code::Aborted => ErrorCode::FailedPrecondition,
            Code::Unimplemented => ErrorCode::Unimplemented,
            Code::Unavailable | Code::Cancelled => ErrorCode::Unavailable,
            Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            Code::DataLoss => ErrorCode::DataLoss,
            Code::Ok | Code::Unknown | Code::Internal => ErrorCode::Internal,
        };
        Error::new(code, status.message)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_becomes_a_status_with_its_hint() {
        let status = Status::from(Error::not_found("no app 'x'").with_hint("List apps with: modal app list"));
        assert_eq!(status.code, Code::NotFound);
        assert_eq!(status.message, "no app 'x'\nList apps with: modal app list");
    }

    #[test]
    fn a_retry_policy_travels_in_the_details() {
        let status = Status::new(Code::ResourceExhausted, "full").retry_after(1.5);
        let decoded = api::RpcStatus::decode(status.details.unwrap()).unwrap();
        assert_eq!((decoded.code, decoded.message.as_str()), (8, "full"));
        assert_eq!(decoded.details[0].type_url, "type.googleapis.com/modal.client.RPCRetryPolicy");
        let policy = api::RpcRetryPolicy::decode(decoded.details[0].value.as_slice()).unwrap();
        assert_eq!(policy.retry_after_secs, 1.5);
    }
}
