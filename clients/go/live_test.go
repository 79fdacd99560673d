package ditcast_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	ditcast "github.com/ditcast/ditcast/clients/go"
	pb "github.com/ditcast/ditcast/clients/go/ditcastv1"
)

// Against a live server: DITCAST_ADDRESS=127.0.0.1:50051 go test ./...

func address() string {
	if given := os.Getenv("DITCAST_ADDRESS"); given != "" {
		return given
	}
	return "127.0.0.1:50051"
}

func client(t *testing.T, address string) *ditcast.Client {
	t.Helper()
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return ditcast.New(connection)
}

func small(steps int32) *pb.GenerateRequest {
	side, seed := int32(64), uint64(7)
	return &pb.GenerateRequest{
		Prompt: "a red circle", Width: &side, Height: &side, NumInferenceSteps: &steps, Seed: &seed,
	}
}

func TestAPictureComesWholeAfterItsSteps(t *testing.T) {
	var steps []int32
	result, err := client(t, address()).Generate(small(4)).Result(
		context.Background(), func(event *pb.GenerationEvent) {
			if step := event.GetStepCompleted(); step != nil {
				steps = append(steps, step.Step)
			}
		})
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) != 4 || steps[0] != 1 || steps[3] != 4 {
		t.Errorf("steps %v", steps)
	}
	if output := result.Outputs[0]; !bytes.HasPrefix(output.Data, []byte("\x89PNG")) {
		t.Errorf("it begins with %q", output.Data[:8])
	}
}

func TestARefusalNamesEveryWrongField(t *testing.T) {
	request, side := small(4), int32(3)
	request.Prompt, request.Width = "", &side
	_, err := client(t, address()).Generate(request).Result(context.Background(), nil)
	var refused *ditcast.Error
	if !errors.As(err, &refused) || refused.Code != codes.InvalidArgument {
		t.Fatal(err)
	}
	if len(refused.FieldViolations) != 2 {
		t.Errorf("violations %v", refused.FieldViolations)
	}
}

func TestAFullQueueSaysAfterHowLongToComeBack(t *testing.T) {
	ctx, some := context.Background(), client(t, address())
	for {
		generation := some.Generate(small(1000))
		_, err := generation.Next(ctx)
		if err == nil {
			defer generation.Cancel(ctx)
			continue
		}
		var refused *ditcast.Error
		if !errors.As(err, &refused) || refused.Code != codes.ResourceExhausted || refused.RetryDelay <= 0 {
			t.Error(err)
		}
		return
	}
}

func TestACancelEndsTheStream(t *testing.T) {
	ctx := context.Background()
	generation := client(t, address()).Generate(small(400))
	_, err := generation.Result(ctx, func(event *pb.GenerationEvent) {
		if event.GetStepCompleted().GetStep() == 2 {
			if _, err := generation.Cancel(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	var ended *ditcast.Error
	if !errors.As(err, &ended) || ended.Code != codes.Canceled || ended.Metadata["steps_done"] == "" {
		t.Fatal(err)
	}
}

func TestABrokenConnectionCostsNoEventAndRepeatsNone(t *testing.T) {
	between := newProxy(t)
	var expected uint64
	_, err := client(t, between.Addr().String()).Generate(small(30)).Result(
		context.Background(), func(event *pb.GenerationEvent) {
			if event.GetHeartbeat() != nil {
				return
			}
			if expected++; event.Sequence != expected {
				t.Errorf("event %d came after %d", event.Sequence, expected-1)
			}
			if step := event.GetStepCompleted().GetStep(); step == 3 || step == 9 {
				between.cut()
			}
		})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAServerThatStaysAwayIsToldAsSuch(t *testing.T) {
	nobody := client(t, "127.0.0.1:1")
	nobody.Patience.Limit = 300 * time.Millisecond
	_, err := nobody.Generate(small(4)).Result(context.Background(), nil)
	var broken *ditcast.Error
	if !errors.As(err, &broken) || !broken.TransportBroken() {
		t.Fatal(err)
	}
}

// proxy stands between a client and the server, and cuts every connection at will.
type proxy struct {
	net.Listener
	mutex sync.Mutex
	open  []net.Conn
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	made := &proxy{Listener: listener}
	t.Cleanup(func() { listener.Close() })
	go made.serve()
	return made
}

func (proxy *proxy) serve() {
	for {
		inner, err := proxy.Accept()
		if err != nil {
			return
		}
		outer, err := net.Dial("tcp", address())
		if err != nil {
			inner.Close()
			continue
		}
		proxy.mutex.Lock()
		proxy.open = append(proxy.open, inner, outer)
		proxy.mutex.Unlock()
		go io.Copy(inner, outer)
		go io.Copy(outer, inner)
	}
}

func (proxy *proxy) cut() {
	proxy.mutex.Lock()
	defer proxy.mutex.Unlock()
	for _, each := range proxy.open {
		each.Close()
	}
	proxy.open = nil
}
