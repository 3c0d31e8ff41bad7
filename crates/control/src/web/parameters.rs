//! Parameters of classes in the query strings of requests: `?name=value` for what is declared by
//! `modal.parameter()`. Requests with the same values share the containers that a client gets who binds the class to
//! them.

use crate::Control;
use crate::variants::{bound_id, variant_key};
use bytes::Bytes;
use evoke_core::{Error, ErrorCode, FunctionId};
use evoke_proto::api;
use evoke_proto::api::class_parameter_info::ParameterSerializationFormat::ParamSerializationFormatProto;
use evoke_proto::api::class_parameter_spec::DefaultOneof;
use evoke_proto::api::class_parameter_value::ValueOneof;
use percent_encoding::percent_decode;
use prost::Message;
use std::borrow::Cow;
use std::sync::Arc;

/// Bytes of all parameters of a class together, as the official documentation has it.
const PARAMETERS_BYTES_MAX: usize = 16 << 10;

impl Control {
    /// The function that serves a request: `function` itself, or what it is when its class has the parameters that
    /// the query string gives.
    pub(crate) async fn with_query(
        self: &Arc<Self>,
        function: FunctionId,
        query: &[u8],
    ) -> Result<FunctionId, Error> {
        let Some(base) = self.registry.function(function) else { return Ok(function) };
        let schema = match &base.definition.function.class_parameter_info {
            Some(info) if info.format() == ParamSerializationFormatProto => &info.schema,
            _ => return Ok(function),
        };
        if schema.is_empty() {
            return Ok(function);
        }
        let request = api::FunctionBindParamsRequest {
            function_id: function.to_string(),
            serialized_params: serialized(schema, query)?,
            ..Default::default()
        };
        let id = bound_id(function, &variant_key(&request));
        let is_current = |found: Arc<crate::registry::Function>| found.definition_id == base.definition_id;
        if !self.registry.function(id).is_some_and(is_current) {
            self.make_variant(&base, id, &request).await?;
        }
        Ok(id)
    }
}

/// The values that a query string gives, as clients write them: those given first, in the class's order, then the
/// defaults.
fn serialized(schema: &[api::ClassParameterSpec], query: &[u8]) -> Result<Bytes, Error> {
    let mut given = Vec::new();
    let mut defaults = Vec::new();
    for spec in schema {
        let kind = kind_of(spec);
        let value = match (last_of(query, &spec.name), &spec.default_oneof) {
            (Some(text), _) => {
                given.push(value(spec, kind, read(spec, kind, text)?));
                continue;
            }
            (None, Some(default)) if spec.has_default => match default {
                DefaultOneof::StringDefault(text) => ValueOneof::StringValue(text.clone()),
                DefaultOneof::IntDefault(number) => ValueOneof::IntValue(*number),
                DefaultOneof::PickleDefault(bytes) => ValueOneof::PickleValue(bytes.clone()),
                DefaultOneof::BytesDefault(bytes) => ValueOneof::BytesValue(bytes.clone()),
                DefaultOneof::BoolDefault(truth) => ValueOneof::BoolValue(*truth),
            },
            (None, _) => {
                let text = format!("The class behind this address needs its parameter `{}`", spec.name);
                let mend = format!("add it to the query string: ?{}=…", spec.name);
                return Err(Error::new(ErrorCode::InvalidArgument, text).with_hint(mend));
            }
        };
        defaults.push(self::value(spec, kind, value));
    }
    given.append(&mut defaults);
    let bytes = api::ClassParameterSet { parameters: given }.encode_to_vec();
    if bytes.len() > PARAMETERS_BYTES_MAX {
        let text = format!(
            "The parameters of this class have {} bytes; they may have {PARAMETERS_BYTES_MAX}",
            bytes.len()
        );
        return Err(Error::new(ErrorCode::InvalidArgument, text));
    }
    Ok(bytes.into())
}

fn value(
    spec: &api::ClassParameterSpec,
    kind: api::ParameterType,
    value: ValueOneof,
) -> api::ClassParameterValue {
    api::ClassParameterValue { name: spec.name.clone(), r#type: kind as i32, value_oneof: Some(value) }
}

/// Newer clients write the type in another place than older ones.
fn kind_of(spec: &api::ClassParameterSpec) -> api::ParameterType {
    let full = spec.full_type.as_ref().map(api::GenericPayloadType::base_type);
    full.filter(|kind| *kind != api::ParameterType::ParamTypeUnspecified).unwrap_or(spec.r#type())
}

fn read(
    spec: &api::ClassParameterSpec,
    kind: api::ParameterType,
    bytes: Vec<u8>,
) -> Result<ValueOneof, Error> {
    use api::ParameterType as Kind;
    let wrong = |what: &str| {
        let text = format!("The parameter `{}` of the class behind this address must be {what}", spec.name);
        Error::new(ErrorCode::InvalidArgument, text)
    };
    let text = |bytes| String::from_utf8(bytes).map_err(|_| wrong("text in UTF-8"));
    Ok(match kind {
        Kind::ParamTypeString => ValueOneof::StringValue(text(bytes)?),
        Kind::ParamTypeInt => {
            let number = text(bytes)?.trim().parse().map_err(|_| wrong("a whole number of 64 bits"))?;
            ValueOneof::IntValue(number)
        }
        Kind::ParamTypeBool => match text(bytes)?.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => ValueOneof::BoolValue(true),
            "false" | "0" | "no" | "off" => ValueOneof::BoolValue(false),
            _ => return Err(wrong("`true` or `false`")),
        },
        Kind::ParamTypeBytes => ValueOneof::BytesValue(bytes.into()),
        _ => return Err(wrong("of a type that a query string can have: str, int, bool or bytes")),
    })
}

/// The last value that a query string has under `name`.
fn last_of(query: &[u8], name: &str) -> Option<Vec<u8>> {
    let pairs = query.split(|byte| *byte == b'&').rev();
    let mut found = pairs.filter_map(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        (*decoded(&pair[..end]) == *name.as_bytes())
            .then(|| decoded(pair.get(end + 1..).unwrap_or_default()).into_owned())
    });
    found.next()
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if text.contains(&b'+') {
        let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
        return Cow::Owned(percent_decode(&spaced).collect());
    }
    percent_decode(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, kind: api::ParameterType, default: Option<DefaultOneof>) -> api::ClassParameterSpec {
        api::ClassParameterSpec {
            name: name.to_owned(),
            r#type: kind as i32,
            has_default: default.is_some(),
            default_oneof: default,
            ..Default::default()
        }
    }

    fn schema() -> Vec<api::ClassParameterSpec> {
        vec![
            spec("count", api::ParameterType::ParamTypeInt, Some(DefaultOneof::IntDefault(10))),
            spec("name", api::ParameterType::ParamTypeString, None),
            spec("loud", api::ParameterType::ParamTypeBool, Some(DefaultOneof::BoolDefault(false))),
        ]
    }

    fn read_back(query: &str) -> Vec<(String, ValueOneof)> {
        let bytes = serialized(&schema(), query.as_bytes()).unwrap();
        let set = api::ClassParameterSet::decode(bytes).unwrap();
        set.parameters.into_iter().map(|value| (value.name, value.value_oneof.unwrap())).collect()
    }

    #[test]
    fn what_is_given_comes_before_what_is_not() {
        use ValueOneof::{BoolValue, IntValue, StringValue};
        let text = |text: &str| StringValue(text.to_owned());
        let cases = [
            ("name=a", vec![("name", text("a")), ("count", IntValue(10)), ("loud", BoolValue(false))]),
            (
                "x=1&name=a+b%26c&count=-3&loud=True",
                vec![("count", IntValue(-3)), ("name", text("a b&c")), ("loud", BoolValue(true))],
            ),
            (
                "name=first&%6eame=last",
                vec![("name", text("last")), ("count", IntValue(10)), ("loud", BoolValue(false))],
            ),
            ("name", vec![("name", text("")), ("count", IntValue(10)), ("loud", BoolValue(false))]),
        ];
        for (query, expected) in cases {
            let expected: Vec<_> =
                expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            assert_eq!(read_back(query), expected, "{query}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let long = format!("name={}", "x".repeat(PARAMETERS_BYTES_MAX));
        for (query, word) in [
            ("", "`name`"),
            ("count=3", "`name`"),
            ("name=a&count=many", "`count`"),
            ("name=a&count=9223372036854775808", "`count`"),
            ("name=a&loud=perhaps", "`loud`"),
            ("name=%ff", "`name`"),
            (long.as_str(), "bytes"),
        ] {
            let error = serialized(&schema(), query.as_bytes()).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(word), "{query}: {error}");
        }
    }
}
