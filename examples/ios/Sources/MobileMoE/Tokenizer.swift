import Foundation

/// Byte-level BPE as a model's tokenizer.json describes it: text to token ids and back.
struct Tokenizer {
    // Where text is cut before its pieces are merged: the pattern of Llama 3, which every model here has.
    private static let split =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"#
        + #"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    // Its \s is Unicode's white space, which that of NSRegularExpression is not.
    private static let space = #"\t-\r\u0085\p{Z}"#
    // The letter of each byte: printable ones stand for themselves, the others for U+0100, U+0101 and so on.
    private static let alphabet: [Character] = {
        var next: UInt32 = 0x100
        return (0..<256).map { (byte: UInt32) in
            if (33...126).contains(byte) || (byte >= 161 && byte != 173) { return Character(Unicode.Scalar(byte)!) }
            defer { next += 1 }
            return Character(Unicode.Scalar(next)!)
        }
    }()

    private let pieces: NSRegularExpression
    private var ids: [String: Int32] = [:]
    private var ranks: [String: Int] = [:]  // of two parts with a blank between them
    private var controls: [String: Int32] = [:]
    private var bytes: [Int32: [UInt8]] = [:]

    /// Reads the content of a tokenizer.json.
    init(json: Data) throws {
        let pattern = Self.split
            .replacingOccurrences(of: #"[^\s"#, with: "[^" + Self.space)
            .replacingOccurrences(of: #"\s"#, with: "[" + Self.space + "]")
            .replacingOccurrences(of: #"\S"#, with: "[^" + Self.space + "]")
        pieces = try NSRegularExpression(pattern: pattern)
        guard let file = try JSONSerialization.jsonObject(with: json) as? [String: Any],
            let cuts = (file["pre_tokenizer"] as? [String: Any])?["pretokenizers"] as? [[String: Any]],
            let cut = (cuts.first?["pattern"] as? [String: Any])?["Regex"] as? String,
            let model = file["model"] as? [String: Any],
            let vocabulary = model["vocab"] as? [String: Int],
            let merges = model["merges"] as? [Any],
            let added = file["added_tokens"] as? [[String: Any]]
        else { throw EngineError(errorDescription: "tokenizer.json lacks a vocabulary of byte-level BPE") }
        guard cut == Self.split else {
            throw EngineError(errorDescription: "tokenizer.json splits text in another way than Llama 3's")
        }
        let byteOf = Dictionary(uniqueKeysWithValues: zip(Self.alphabet, UInt8.min...UInt8.max))
        for (name, id) in vocabulary {
            ids[name] = Int32(id)
            bytes[Int32(id)] = name.unicodeScalars.compactMap { byteOf[Character($0)] }
        }
        for (rank, merge) in merges.enumerated() {
            let pair = (merge as? [String])?.joined(separator: " ") ?? merge as? String  // the older form is one text
            if let pair { ranks[pair] = rank }
        }
        for token in added {
            guard let name = token["content"] as? String, let id = token["id"] as? Int else { continue }
            controls[name] = Int32(id)
            bytes[Int32(id)] = nil  // nothing that a reader should see
        }
    }

    /// The id of a control token like `<|eot|>`.
    func control(_ name: String) -> Int32? { controls[name] }

    /// The ids of a text. What looks like a control token in it is plain text.
    func encode(_ text: String) -> [Int32] {
        let whole = text as NSString
        let found = pieces.matches(in: text, range: NSRange(location: 0, length: whole.length))
        return found.flatMap { match in
            merge(whole.substring(with: match.range).utf8.map { String(Self.alphabet[Int($0)]) })
        }
    }

    /// The bytes of a token, in UTF-8; a character may be spread over several tokens. Empty for control tokens.
    func bytes(of id: Int32) -> [UInt8] { bytes[id] ?? [] }

    private func merge(_ letters: [String]) -> [Int32] {
        if let id = ids[letters.joined()] { return [id] }
        var parts = letters
        while true {
            let pairs = zip(parts, parts.dropFirst()).enumerated()
            let ranked = pairs.compactMap { place, pair in
                ranks[pair.0 + " " + pair.1].map { (rank: $0, place: place) }
            }
            guard let best = ranked.min(by: { $0.rank < $1.rank })?.place else { break }
            let second = parts.remove(at: best + 1)
            parts[best] += second
        }
        return parts.compactMap { ids[$0] }
    }
}
