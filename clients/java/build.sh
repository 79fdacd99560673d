#!/bin/sh
# Makes build/generate.jar with javac, protoc and grpc_java_plugin, of the jars that Debian has (README.md names the packages).
set -eu
cd "$(dirname "$0")"
jars=/usr/share/java
path=''
for name in grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite grpc-stub protobuf guava \
	perfmark-api perfmark-impl geronimo-annotation-1.3-spec netty-buffer netty-codec netty-codec-http \
	netty-codec-http2 netty-codec-socks netty-common netty-handler netty-handler-proxy netty-resolver \
	netty-transport netty-transport-native-unix-common; do
	[ -e "$jars/$name.jar" ] || { echo "$jars/$name.jar is missing: see README.md" >&2; exit 1; }
	path="$path $jars/$name.jar"
done

rm -rf build
mkdir -p build/gen build/classes
protoc -I../../proto -I../proto --java_out=build/gen ../../proto/ditcast/v1/*.proto ../proto/google/rpc/*.proto
protoc -I../../proto --plugin=protoc-gen-grpc="$(command -v grpc_java_plugin)" --grpc_out=build/gen \
	../../proto/ditcast/v1/diffusion_service.proto
find build/gen src -name '*.java' >build/sources
javac -nowarn -d build/classes -cp "$(echo "$path" | tr ' ' ':')" @build/sources
# A line of a manifest goes on in the next one after a space, so that each jar can have one.
{
	echo 'Main-Class: ditcast.example.Main'
	echo 'Class-Path: ' # The space has to be there.
	printf '  %s\n' $path
} >build/manifest
jar cfm build/generate.jar build/manifest -C build/classes .
