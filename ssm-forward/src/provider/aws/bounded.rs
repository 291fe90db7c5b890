//! Limits the length of the API's answers.

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt;
use http_body_util::{LengthLimitError, Limited};

/// Maximum length of an answer, in bytes. A page of a thousand instances with all their tags has some megabytes; other answers are
/// much shorter.
const MAX_ANSWER: usize = 16 << 20;

/// Returns the answer with a limited body: reading more than [`MAX_ANSWER`] bytes is an error, because the SDK keeps whole answers
/// in memory.
pub(super) fn bounded(answer: HttpResponse) -> HttpResponse {
    answer.map(bounded_body)
}

fn bounded_body(body: SdkBody) -> SdkBody {
    let named = |error: BoxError| -> BoxError {
        match error.is::<LengthLimitError>() {
            true => format!("the answer is longer than {} MiB", MAX_ANSWER >> 20).into(),
            false => error,
        }
    };
    SdkBody::from_body_1_x(Limited::new(body, MAX_ANSWER).map_err(named))
}
