//! Descriptors of the `google.protobuf` messages that the schema refers to. The generated code uses the
//! types of `prost-types`; the generator only needs to know which of them have floating-point fields (no
//! `Eq`) or fields on the heap (no `Copy`).

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};

const MESSAGES: &[(&str, &[Type])] = &[
    ("Any", &[Type::String, Type::Bytes]),
    ("Empty", &[]),
    ("Timestamp", &[Type::Int64, Type::Int32]),
    ("Duration", &[Type::Int64, Type::Int32]),
    // Trees of values, with numbers as floating point.
    ("Struct", &[Type::Double, Type::String]),
    ("Value", &[Type::Double, Type::String]),
    ("ListValue", &[Type::Double, Type::String]),
    ("DoubleValue", &[Type::Double]),
    ("FloatValue", &[Type::Float]),
    ("Int64Value", &[Type::Int64]),
    ("UInt64Value", &[Type::Uint64]),
    ("Int32Value", &[Type::Int32]),
    ("UInt32Value", &[Type::Uint32]),
    ("BoolValue", &[Type::Bool]),
    ("StringValue", &[Type::String]),
    ("BytesValue", &[Type::Bytes]),
];

/// One file with all of them.
pub fn file() -> FileDescriptorProto {
    let message_type = MESSAGES.iter().map(|(name, fields)| DescriptorProto {
        name: Some((*name).to_owned()),
        field: fields.iter().zip(1..).map(|(kind, number)| field(*kind, number)).collect(),
        ..Default::default()
    });
    FileDescriptorProto {
        name: Some("google/protobuf/well_known.proto".to_owned()),
        package: Some("google.protobuf".to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: message_type.collect(),
        ..Default::default()
    }
}

fn field(kind: Type, number: i32) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(format!("field_{number}")),
        number: Some(number),
        label: Some(Label::Optional as i32),
        r#type: Some(kind as i32),
        ..Default::default()
    }
}
