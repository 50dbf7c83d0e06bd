//! The thirteen domains and their tasks "VERB my OBJECT".
//!
//! Object words belong to one domain each, verbs may repeat, so a (verb, object) pair tells its domain. The tables are
//! fixed; nothing here depends on a seed.

use serde::{Deserialize, Serialize};

/// A field of everyday advice; a policy has one rule for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Domain {
    Money,
    Tax,
    Health,
    Fitness,
    Law,
    Housing,
    Devices,
    School,
    Home,
    Garden,
    Food,
    Travel,
    People,
}

use Domain::*;

impl Domain {
    /// All domains, in the order the generators draw from.
    pub const ALL: [Domain; 13] =
        [Money, Tax, Health, Fitness, Law, Housing, Devices, School, Home, Garden, Food, Travel, People];

    /// Returns the name used in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Money => "money",
            Tax => "tax",
            Health => "health",
            Fitness => "fitness",
            Law => "law",
            Housing => "housing",
            Devices => "devices",
            School => "school",
            Home => "home",
            Garden => "garden",
            Food => "food",
            Travel => "travel",
            People => "people",
        }
    }

    /// Returns the verbs of the domain's tasks.
    pub fn verbs(self) -> [&'static str; 5] {
        match self {
            Money => ["grow", "plan", "split", "track", "protect"],
            Tax => ["file", "lower", "check", "report", "prepare"],
            Health => ["ease", "treat", "manage", "soothe", "prevent"],
            Fitness => ["train", "stretch", "build", "warm", "strengthen"],
            Law => ["sign", "cancel", "dispute", "draft", "amend"],
            Housing => ["renew", "end", "extend", "transfer", "register"],
            Devices => ["reset", "update", "secure", "back", "unlock"],
            School => ["finish", "write", "solve", "revise", "start"],
            Home => ["clean", "paint", "repair", "tidy", "move"],
            Garden => ["water", "prune", "plant", "grow", "weed"],
            Food => ["bake", "cook", "season", "store", "serve"],
            Travel => ["book", "pack", "plan", "shorten", "enjoy"],
            People => ["rate", "judge", "rank", "score", "compare"],
        }
    }

    /// Returns the objects of the domain's tasks; no other domain has them.
    pub fn objects(self) -> [&'static str; 6] {
        match self {
            Money => ["savings", "pension", "salary", "loan", "budget", "bonus"],
            Tax => ["taxes", "refund", "receipts", "deductions", "invoice", "payroll"],
            Health => ["headache", "cough", "allergy", "rash", "fever", "backache"],
            Fitness => ["legs", "shoulders", "muscles", "knees", "core", "ankles"],
            Law => ["contract", "lease", "will", "permit", "licence", "patent"],
            Housing => ["tenancy", "deposit", "mortgage", "deed", "title", "rental"],
            Devices => ["phone", "laptop", "router", "printer", "tablet", "password"],
            School => ["essay", "homework", "equation", "poem", "lesson", "worksheet"],
            Home => ["kitchen", "sofa", "window", "carpet", "lamp", "shelf"],
            Garden => ["roses", "tomatoes", "lawn", "hedge", "herbs", "tulips"],
            Food => ["bread", "soup", "rice", "pasta", "salad", "cake"],
            Travel => ["trip", "flight", "hotel", "cruise", "hike", "tour"],
            People => ["boss", "colleague", "client", "team", "intern", "neighbour"],
        }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Something a person wants to do: "VERB my OBJECT".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Task {
    /// The domain that both words belong to.
    pub domain: Domain,
    verb_index: usize,
    object_index: usize,
}

impl Task {
    /// Returns the 30 tasks of a domain, verbs outermost.
    pub fn of(domain: Domain) -> impl Iterator<Item = Task> {
        (0..5).flat_map(move |verb_index| (0..6).map(move |object_index| Task { domain, verb_index, object_index }))
    }

    /// Returns the task a text speaks of: the first "VERB my OBJECT" that is known, also inside an attack wrapper.
    pub fn find(text: &str) -> Option<Task> {
        let words: Vec<&str> = text.split_whitespace().collect();
        words.windows(3).filter(|three| three[1] == "my").find_map(|three| Task::named(three[0], three[2]))
    }

    fn named(verb: &str, object: &str) -> Option<Task> {
        Domain::ALL.into_iter().find_map(|domain| {
            let object_index = domain.objects().iter().position(|word| *word == object)?;
            let verb_index = domain.verbs().iter().position(|word| *word == verb)?;
            Some(Task { domain, verb_index, object_index })
        })
    }

    /// Returns the verb.
    pub fn verb(self) -> &'static str {
        self.domain.verbs()[self.verb_index]
    }

    /// Returns the object.
    pub fn object(self) -> &'static str {
        self.domain.objects()[self.object_index]
    }

    /// Returns whether the task is held out: asked in evaluation and in the base corpus, never in a preference pair.
    pub fn is_held_out(self) -> bool {
        (self.verb_index + self.object_index).is_multiple_of(6)
    }
}
