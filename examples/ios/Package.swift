// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "MobileMoE",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "MobileMoE", targets: ["MobileMoE"])],
    targets: [
        // Made by build-xcframework.sh from native/ of this repository.
        .binaryTarget(name: "CMobileMoE", path: "CMobileMoE.xcframework"),
        .target(name: "MobileMoE", dependencies: ["CMobileMoE"], linkerSettings: [.linkedLibrary("c++")]),
    ]
)
