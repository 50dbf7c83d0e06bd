//! What can be wrong with a model folder's text files, or with one prompt and response.
//!
//! Messages about a record do not name it: the caller knows its file and index and puts them in front.

use std::path::PathBuf;

/// A text that could not be turned into tokens, or files that do not say how.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the model folder is absent or unreadable.
    #[error("cannot read {path}: {source}; a model folder needs tokenizer.json (Hugging Face layout)", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the model folder does not hold what its name promises.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// The chat template refused the conversation or failed on it.
    #[error("the chat template cannot render this conversation: {0}")]
    Render(String),
    /// The rendered text does not show where the response stands.
    #[error("the chat template does not render the response as it is given, so its tokens cannot be told apart: {0}")]
    ResponseNotFound(String),
    /// The response, as the template renders it, has no characters or no tokens.
    #[error("the response is empty{0}; remove the record or give it a response")]
    EmptyResponse(&'static str),
    /// No text or no token stands before the response, so that its first token has no prediction.
    #[error(
        "the prompt is empty, so nothing predicts the first token of a response; remove the record or give it a prompt"
    )]
    EmptyPrompt,
    /// In reference mode: the prompt alone fills the limit.
    #[error(
        "takes {prompt_tokens} tokens of at most {max_length}, so no response token is left in reference mask mode; \
         shorten the prompt, or use --mask exact"
    )]
    PromptTooLong {
        /// Tokens of the prompt part.
        prompt_tokens: usize,
        /// The limit.
        max_length: usize,
    },
    /// A limit that leaves no room for one prompt token and one response token.
    #[error("max-length is {0}; it must be at least 2, for one prompt and one response token")]
    LimitTooSmall(usize),
    /// An end-of-sequence token is needed and no file names one.
    #[error(
        "the tokenizer has no end-of-sequence token; name it as \"eos_token\" in tokenizer_config.json or \
         \"eos_token_id\" in config.json"
    )]
    NoEos,
    /// The tokenizer failed on a text.
    #[error("the tokenizer failed: {0}")]
    Tokenize(String),
}

impl TextError {
    /// Returns the error as the end of a sentence about a record of which `response` is the field encoded.
    pub fn of_field(&self, response: &str) -> String {
        let field = match self {
            TextError::PromptTooLong { .. } | TextError::EmptyPrompt => "prompt",
            _ => response,
        };
        format!("field {field:?}: {self}")
    }
}
