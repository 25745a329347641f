import Foundation

/// A model's folder (config.json, model.safetensors, tokenizer.json) that writes text.
public actor TextModel {
    private let engine: Engine
    private let tokenizer: Tokenizer
    private let stops: Set<Int32>

    /// Opens the model; at the first time it writes `model.mobilemoe` beside it, which later opens at once.
    public init(folder: URL, threads: Int) throws {
        tokenizer = try Tokenizer(json: Data(contentsOf: folder.appending(path: "tokenizer.json")))
        let config = try JSONSerialization.jsonObject(with: Data(contentsOf: folder.appending(path: "config.json")))
        let ends = (config as? [String: Any])?["eos_token_id"]
        let ids = ends as? [Int] ?? (ends as? Int).map { [$0] } ?? []
        stops = Set(ids.map { Int32($0) } + [tokenizer.control("<|eot|>")].compactMap { $0 })
        engine = try Self.open(folder, threads: threads)
    }

    /// An engine file that another version of the engine wrote, or of which a part is missing, is written again.
    private static func open(_ folder: URL, threads: Int) throws -> Engine {
        let engineFile = folder.appending(path: "model.mobilemoe")
        if FileManager.default.fileExists(atPath: engineFile.path) {
            do {
                return try Engine(path: engineFile.path, threads: threads)
            } catch {
                let names = try FileManager.default.contentsOfDirectory(atPath: folder.path)
                if !names.contains(where: { $0.hasPrefix("model") && $0.hasSuffix(".safetensors") }) { throw error }
            }
        }
        try Engine.repack(folder: folder.path, engineFile: engineFile.path)
        return try Engine(path: engineFile.path, threads: threads)
    }

    /// The answer to a question, piece by piece; for models that were trained to chat. temperature 0: greedy.
    public nonisolated func answer(
        _ question: String, maxNewTokens: Int, temperature: Double
    ) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { pieces in
            let task = Task {
                do {
                    try await self.write(question, maxNewTokens, temperature) { pieces.yield($0) }
                    pieces.finish()
                } catch {
                    pieces.finish(throwing: error)
                }
            }
            pieces.onTermination = { _ in task.cancel() }
        }
    }

    private func write(
        _ question: String, _ most: Int, _ temperature: Double, onText: (String) -> Void
    ) throws {
        var step = prompt(question)
        if step.count > engine.context {
            throw EngineError(
                errorDescription: "the text has \(step.count) tokens, more than the context of \(engine.context)")
        }
        let fitting = max(0, min(most, engine.context - step.count + 1))
        var waiting: [UInt8] = []
        try engine.start(temperature: temperature, topP: 0.95, seed: UInt64.random(in: 0...UInt64.max))
        for _ in 0..<fitting where !Task.isCancelled {
            try engine.append(step)
            let token = try engine.choose()
            if stops.contains(token) { break }
            waiting += tokenizer.bytes(of: token)
            let whole = waiting.count - bytesOfUnfinishedCharacter(waiting)
            if whole > 0 { onText(String(decoding: waiting[..<whole], as: UTF8.self)) }
            waiting.removeFirst(whole)
            step = [token]
        }
    }

    // docs/spec.md, section 3.4.
    private func prompt(_ question: String) -> [Int32] {
        func control(_ name: String) -> [Int32] { tokenizer.control(name).map { [$0] } ?? [] }
        func header(_ role: String) -> [Int32] {
            control("<|header_start|>") + tokenizer.encode(role) + control("<|header_end|>")
        }
        return control("<|begin_of_text|>") + header("user") + tokenizer.encode("\n\n" + question)
            + control("<|eot|>") + header("assistant") + tokenizer.encode("\n\n")
    }
}

/// How many of the last bytes begin a character of UTF-8 that they do not end: 0 to 3.
private func bytesOfUnfinishedCharacter(_ bytes: [UInt8]) -> Int {
    for (back, byte) in bytes.reversed().prefix(3).enumerated() where byte & 0xC0 != 0x80 {
        let length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1
        return length > back + 1 ? back + 1 : 0
    }
    return 0
}
