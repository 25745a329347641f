import SwiftUI

@main
struct MobileMoEApp: App {
    var body: some Scene {
        WindowGroup { ContentView() }
    }
}
