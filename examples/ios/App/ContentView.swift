import MobileMoE
import SwiftUI

/// Picks a model from the app's documents and shows its text as it is written.
struct ContentView: View {
    @StateObject private var writer = Writer()
    @State private var folder: URL?
    @State private var question = ""

    var body: some View {
        VStack(alignment: .leading) {
            Picker("Model", selection: $folder) {
                ForEach(writer.folders, id: \.self) { Text($0.lastPathComponent).tag(Optional($0)) }
            }
            TextField("Write something", text: $question, axis: .vertical).textFieldStyle(.roundedBorder)
            if writer.isWriting {
                Button("Stop") { writer.stop() }
            } else {
                Button("Answer") { if let folder { writer.answer(question, with: folder) } }.disabled(folder == nil)
            }
            ScrollView { Text(writer.text).frame(maxWidth: .infinity, alignment: .leading) }
        }
        .padding()
        .onAppear { folder = writer.folders.first }
    }
}

@MainActor
final class Writer: ObservableObject {
    @Published private(set) var text = ""
    @Published private(set) var isWriting = false
    let folders: [URL]
    private var model: (folder: URL, opened: TextModel)?
    private var task: Task<Void, Never>?

    init() {
        let documents = URL.documentsDirectory
        let found = try? FileManager.default.contentsOfDirectory(at: documents, includingPropertiesForKeys: nil)
        folders = (found ?? [])
            .filter { FileManager.default.fileExists(atPath: $0.appending(path: "config.json").path) }
            .sorted { $0.path < $1.path }
        if folders.isEmpty { text = "No model yet: the README says how to copy one into the app's documents." }
    }

    func answer(_ question: String, with folder: URL) {
        text = ""
        isWriting = true
        task = Task {
            do {
                let opened = try await open(folder)
                for try await piece in opened.answer(question, maxNewTokens: 512, temperature: 0.7) { text += piece }
            } catch {
                text = error.localizedDescription
            }
            isWriting = false
        }
    }

    func stop() { task?.cancel() }

    private func open(_ folder: URL) async throws -> TextModel {
        if let model, model.folder == folder { return model.opened }
        model = nil
        let opened = try await Task.detached { try TextModel(folder: folder, threads: 0) }.value
        model = (folder, opened)
        return opened
    }
}
